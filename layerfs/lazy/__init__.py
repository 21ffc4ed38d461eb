"""Images that are mounted before they are here: layers made of their tables of contents, data when it is read."""
