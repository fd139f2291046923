"""Former place of the reader of image files: kept, as scripts outside of this package import it from here."""
