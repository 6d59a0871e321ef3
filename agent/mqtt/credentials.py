"""What a box shows a broker: its user and password, and TLS with the certificates that it is to trust and to show."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path
from typing import Final

from agent.config import MqttConfig
from agent.errors import ConfigError
from agent.mqtt.client import Broker
from agent.mqtt.topics import filter_problem
from agent.mqtt_url import parse_address

#: Bytes of a password file, and of a password in it.
MAX_PASSWORD: Final = 4096


def broker_of(config: MqttConfig) -> Broker:
    """The broker that a configuration names, with everything read that it needs. Blocks; raises ConfigError."""
    if config.url is None:
        raise ConfigError("mqtt.url is missing")
    for text in config.reply_to:
        if wrong := filter_problem(text):
            raise ConfigError(f"mqtt.reply_to: {text!r} {wrong}")
    address = parse_address(config.url)
    password = None if config.password_file is None else _password(config.password_file)
    return Broker(address, config.protocol, config.user, password, _context(config) if address.tls else None)


def _password(path: Path) -> str:
    _private(path, "password_file")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PASSWORD + 1)
        text = data.decode("utf-8").rstrip("\r\n")
    except OSError as error:
        raise ConfigError(f"mqtt.password_file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"mqtt.password_file {path} is not UTF-8 text") from None
    if not text or len(data) > MAX_PASSWORD or "\n" in text:
        raise ConfigError(f"mqtt.password_file {path} must hold one line of at most {MAX_PASSWORD} bytes")
    return text


def _context(config: MqttConfig) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=config.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"mqtt.ca_file {config.ca_file} holds no certificates that can be read: {error}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if config.cert_file is not None and config.key_file is not None:
        _private(config.key_file, "key_file")
        try:
            # An empty password: without one OpenSSL would ask whoever sits at the terminal.
            context.load_cert_chain(config.cert_file, config.key_file, password="")
        except (OSError, ssl.SSLError) as error:
            text = f"mqtt.cert_file {config.cert_file} and mqtt.key_file {config.key_file} cannot be used: {error}"
            raise ConfigError(text) from None
    return context


def _private(path: Path, key: str) -> None:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise ConfigError(f"mqtt.{key} {path} cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigError(f"mqtt.{key} {path} can be read by others (mode {mode:04o}); run: chmod 600 {path}")
