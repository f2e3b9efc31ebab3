"""What nobody would send: generated from the document and from nothing."""
