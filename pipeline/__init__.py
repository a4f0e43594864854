"""Raw files to prepared domain folders, and prepared folders to batches."""
