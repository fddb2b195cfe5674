"""Files of all chapters: how texts are read (reading.py), how outputs are written (writing.py), whether two runs do the
same work (runs.py), and how figures look (style.py)."""
