// npm `eventsource`: the browser's interface, for Node.

import { EventSource } from 'eventsource';

import { gaveUp, got, kinds, url } from './report.mjs';

const source = new EventSource(url);
for (const kind of kinds) {
  source.addEventListener(kind, (event) => got(event.type, event.data, event.lastEventId));
}
source.addEventListener('error', (event) => {
  if (source.readyState === EventSource.CLOSED) gaveUp(event.message);
});
