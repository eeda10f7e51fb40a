"""A web application: hashes of what it is sent, and notes that are kept in SQLite."""

import hashlib
import os
import sqlite3

from flask import Flask, request

app = Flask(__name__)
path = os.environ.get("NOTES", "/data/notes.db")


def database():
    db = sqlite3.connect(path, timeout=30)
    db.execute("CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL)")
    return db


@app.get("/")
def hello():
    return f"hello from {os.environ['HOSTNAME']}\n"


@app.post("/sha256")
def sha256():
    return hashlib.sha256(request.get_data()).hexdigest() + "\n"


@app.get("/notes")
def notes():
    db = database()
    rows = db.execute("SELECT text FROM notes ORDER BY id").fetchall()
    db.close()
    return "".join(text + "\n" for (text,) in rows)


@app.post("/notes")
def keep():
    db = database()
    with db:
        db.execute("INSERT INTO notes (text) VALUES (?)", (request.get_data(as_text=True).strip(),))
    db.close()
    return "kept\n", 201
