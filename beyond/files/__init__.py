"""File handling for all chapters: reading texts (reading.py), writing outputs (writing.py), checking that two runs do
the same work (runs.py), and the style of figures (style.py)."""
