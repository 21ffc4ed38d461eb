"""Images that are mounted before they are here: data comes when it is read."""
