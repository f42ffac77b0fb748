// npm `eventsource-client`: an asynchronous iterator over any event.

import { createEventSource } from 'eventsource-client';

import { gaveUp, got, url } from './report.mjs';

for await (const { event, data, id } of createEventSource(url)) {
  got(event, data, id ?? '');
}
gaveUp('the iterator ended');
