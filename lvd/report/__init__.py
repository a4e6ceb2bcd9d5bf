"""One renderer for the pages a person reads: figures, and a self-contained HTML page around them."""
