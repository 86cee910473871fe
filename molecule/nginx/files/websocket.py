"""A websocket service that sends each message back in capitals."""

import asyncio

import websockets


async def capitals(connection):
    async for message in connection:
        await connection.send(message.upper())


async def main():
    async with websockets.serve(capitals, "127.0.0.1", 9200):
        await asyncio.Future()


asyncio.run(main())
