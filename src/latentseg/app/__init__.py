"""The painter: a page in the browser on which a person paints parts on generated images."""
