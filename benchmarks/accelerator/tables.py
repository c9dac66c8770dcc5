def tables(lines):
    return ""
