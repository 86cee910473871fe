"""Is run once, and fails as long as a file is missing."""

import pathlib
import sqlite3

with sqlite3.connect("data/diary.db") as file:
    file.execute("INSERT INTO set_up VALUES ('today')")
    pathlib.Path("data/ready").stat()
