"""Prints what a process shows that shares the figures of others and has none itself."""

import sys

from metrics.exposition import Exposition, shared_folder
from metrics.instruments import Instruments

text, _ = Exposition(Instruments().registry, shared_folder()).render("")
sys.stdout.write(text.decode())
