"""What handlers work with, under the keys by which the application holds it."""

from __future__ import annotations

from aiohttp import web

from agents.registry import Registry
from events.conversation_log import ConversationLog
from events.hub import Hub
from events.streamed_messages import StreamedMessages
from handlers.config import LivesConfig, RequestConfig
from handlers.proxies import Proxies
from handlers.rate_limits import RateLimits
from metrics.exposition import Exposition
from metrics.instruments import Instruments
from storage.conversations import Conversations
from storage.credentials import Credentials
from storage.database import Database
from storage.idempotency import Keys
from storage.messages import Messages
from storage.windows import Windows

REQUESTS = web.AppKey("requests", RequestConfig)
PROXIES = web.AppKey("proxies", Proxies)
METRICS_TOKEN = web.AppKey("metrics_token", str)  # only there where one is set
DATABASE = web.AppKey("database", Database)
CONVERSATIONS = web.AppKey("conversations", Conversations)
MESSAGES = web.AppKey("messages", Messages)
WINDOWS = web.AppKey("windows", Windows)
LOG = web.AppKey("log", ConversationLog)
STREAMED = web.AppKey("streamed", StreamedMessages)
HUB = web.AppKey("hub", Hub)
KEYS = web.AppKey("keys", Keys)
REGISTRY = web.AppKey("registry", Registry)
INSTRUMENTS = web.AppKey("instruments", Instruments)
RATE_LIMITS = web.AppKey("rate_limits", RateLimits)
EXPOSITION = web.AppKey("exposition", Exposition)
CREDENTIALS = web.AppKey("credentials", Credentials)
LIVES = web.AppKey("lives", LivesConfig)
