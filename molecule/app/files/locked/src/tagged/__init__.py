"""An app in a src layout, with a lock, a package of its own folder and one of a private index."""

import flask

app = flask.Flask(__name__)
