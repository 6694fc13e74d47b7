"""Vector sketches: from words (`draw`), and the editing of an SVG by words (`change`)."""
