// npm `@microsoft/fetch-event-source`. It is written for browsers, so it is given the names it looks for there.

import { fetchEventSource } from '@microsoft/fetch-event-source';

import { gaveUp, got, url } from './report.mjs';

globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };

fetchEventSource(url, {
  openWhenHidden: true,
  onmessage({ event, data, id }) {
    if (data) got(event, data, id);
  },
  // By itself it takes the end of a response for the end of the stream; an error makes it come back.
  onclose() {
    throw new Error('the stream goes on');
  },
}).then(() => gaveUp('it resolved'), (error) => gaveUp(error));
