// Headless Chromium for tests and timings; the page itself has no use for this.

import { chromium } from 'playwright-core';

export const launch = () =>
  chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking']
      .concat(['--disable-component-update', '--disable-sync']),
  });
