"""Tests in a browser, against a running site."""
