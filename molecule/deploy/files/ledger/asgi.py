"""The ledger for ASGI: it serves after its startup only, and repeats what a websocket says."""

import asyncio
import json
import os

import psycopg

RELEASE = os.environ["APP_RELEASE"]
begun = False


async def lifespan(receive, send):
    global begun
    await receive()
    begun = True
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def talk(receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": f"{RELEASE} heard {message['text']}"})


def write(row):
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        connection.execute("INSERT INTO rows (id) VALUES (%s)", (row["id"],))


async def answer(scope, receive):
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body")
    if scope["path"] == "/slow":
        await asyncio.sleep(1.5)
    if scope["method"] == "POST":
        await asyncio.to_thread(write, json.loads(body))
        return 201, ""
    # Without the visitor's address, which nginx tells, this fails.
    return 200, f"a ledger for {scope['client'][0]}\n"


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return await lifespan(receive, send)
    if scope["type"] == "websocket":
        return await talk(receive, send)
    status, text = await answer(scope, receive) if begun else (500, "not begun\n")
    headers = [(b"x-release", RELEASE.encode()), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
