// What the programs beside this one share: they read the stream at the URL they are given with one client library
// each, and print what it hands over as lines of JSON, until their standard input ends.

import process from 'node:process';

export const [url, ...kinds] = process.argv.slice(2);

export function got(event, data, id) {
  process.stdout.write(JSON.stringify({ event, data, id }) + '\n');
}

// A client that has given up will not come back: whoever waits for it should hear of it at once.
export function gaveUp(why) {
  process.stderr.write(`gave up: ${why}\n`);
  process.exit(1);
}

process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
