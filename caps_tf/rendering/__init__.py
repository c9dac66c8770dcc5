"""Rendered toys: solids, toys made of them, a studio that photographs them, and sets and folders of pictures."""
