"""The server that a command talks to: one that runs already, or one of its own for a model."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from gridwork import program
from gridwork.client import Address, Client, is_address
from gridwork.errors import EngineDied, GridworkError, InvalidRequest, RequestFailed
from gridwork.server import Server


@dataclass(frozen=True)
class Serving:
    """A server that answers."""

    shown: str
    """Its URL or model, as the user gave it."""
    address: Address
    own: Server | None = None
    """The server itself where the command has started it."""

    def death(self) -> GridworkError | None:
        """Why there is no server; None where it may still be there."""
        if self.own is None or self.own.is_alive_soon():
            return None
        return self.own.death()

    def client(self) -> Client:
        """A new client of the server."""
        return Client(self.address, self.death)


def read_target(text: str, flags: Sequence[str]) -> str:
    """The target as a URL or a model. Raises InvalidRequest for flags of the server beside a URL, and for an empty
    text."""
    if not text:
        raise InvalidRequest("the URL or model is empty; give a folder, a name on the hub, or the URL of a server")
    is_url = is_address(text)
    if is_url and flags:
        raise InvalidRequest(
            f"`{flags[0]}` is no flag of this command, and {text} runs already, so that it takes no flags of a server; "
            "remove it"
        )
    if is_url and not re.match(r"https?://[^/\s]+|unix:.", text):
        raise InvalidRequest(f'"{text}" is no URL; give one such as http://127.0.0.1:3000 or unix:/path/of/socket')
    return text


@contextmanager
def started(model: str, flags: Sequence[str], options: Mapping[str, Any]) -> Iterator[Server]:
    """A server for the model, until the end of the block. It shows on a terminal that it loads.

    options: settings in place of their defaults; one that `flags` have too is left to them."""
    typed = program.typed_names(flags)
    server = Server(model, {name: value for name, value in options.items() if name not in typed}, flags)
    try:
        console = Console(stderr=True)
        if console.is_terminal:
            with console.status(f"loading {model}"):
                server.wait_ready()
        else:
            print(f"loading {model}", file=sys.stderr)
            server.wait_ready()
        yield server
    finally:
        server.close()


async def find_model(serving: Serving, named: str | None) -> str:
    """Name of the model for requests: the given one, else the first that the server lists.

    Raises EngineDied where no server answers, InvalidRequest where one wants another key or lists no model."""
    client, shown = serving.client(), serving.shown
    try:
        listed = await client.get("/v1/models")
        names = [str(each["id"]) for each in listed["data"]]
    except EngineDied as error:
        reason = str(error).partition(" broke: ")[2] or str(error)
        raise EngineDied(f"no server answers at {shown}: {reason}") from None
    except RequestFailed as error:
        if error.status in (401, 403):
            raise InvalidRequest(f"{shown} refuses the key; give the right one with --api-key ({error})") from None
        if named is None:
            raise InvalidRequest(
                f"{shown}/v1/models has status {error.status}; give the model's name with --model"
            ) from None
        names = []
    except (InvalidRequest, ValueError, KeyError, TypeError):
        if named is None:
            raise InvalidRequest(f"{shown}/v1/models lists no model; give the model's name with --model") from None
        names = []
    finally:
        await client.close()
    if named is not None:
        return named
    if not names:
        raise InvalidRequest(f"{shown}/v1/models lists no model; give the model's name with --model")
    return names[0]


@contextmanager
def opened_server(
    target: str, flags: Sequence[str], api_key: str | None, options: Mapping[str, Any] | None = None
) -> Iterator[Serving]:
    """The server at a URL, or one for a model until the end of the block, with these `options` and flags."""
    if is_address(target):
        yield Serving(target, Address.read(target, api_key))
        return
    options = {"api_key": api_key, **(options or {})}
    with started(target, flags, options) as server:
        yield Serving(target, Address.read(f"unix:{server.wait_ready().socket}", api_key), server)
