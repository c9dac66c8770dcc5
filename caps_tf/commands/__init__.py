"""What the scripts at the top level and the console commands of the package run: one module a command, with its flags."""
