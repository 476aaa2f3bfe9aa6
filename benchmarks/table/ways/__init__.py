"""Ways to save and load: one file per library, behind one small interface (`way.py`)."""
