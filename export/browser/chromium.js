// Starts headless Chromium for tests and timings. The page itself doesn't need this file.

import { chromium } from 'playwright-core';

export const launch = () =>
  chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking']
      .concat(['--disable-component-update', '--disable-sync'])
      .concat(['--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream']), // a camera that shows a test picture
  });
