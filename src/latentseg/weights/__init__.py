"""Files of weights, of any project, opened as data: nothing in them runs."""
