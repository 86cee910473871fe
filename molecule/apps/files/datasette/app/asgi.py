from datasette.app import Datasette

app = Datasette(
    ["data/notes.db"],
    metadata={
        "databases": {
            "notes": {
                "queries": {
                    "add": {"sql": "insert into notes (text) values (:text)", "write": True}
                }
            }
        }
    },
).app()
