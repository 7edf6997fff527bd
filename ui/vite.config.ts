import { readFileSync } from "node:fs";

import { defineConfig } from "vitest/config";

/** Where `npm run dev` sends what is not of the page itself: a server that runs already. */
const server = process.env.BLOODBANK_URL ?? "http://127.0.0.1:8682";
const api = "^/(events|stats|lineage|readyz|dlq|jobs|outbox|demo|healthz|docs|openapi.json)(/|\\?|$)";

/** What is in the page beside our own source. Their licence wants to be where the code is. */
const included = ["preact", "@preact/signals", "@preact/signals-core"];
const licenses = {
  name: "licenses",
  generateBundle(this: { emitFile(file: { type: "asset"; fileName: string; source: string }): string }) {
    const texts = included.map((name) => `${name}\n\n${readFileSync(`node_modules/${name}/LICENSE`, "utf8")}`);
    this.emitFile({ type: "asset", fileName: "licenses.txt", source: texts.join("\n\n") });
  },
};

export default defineConfig({
  plugins: [licenses],
  esbuild: { jsx: "automatic", jsxImportSource: "preact" },
  build: {
    outDir: "../src/bloodbank/http/static",
    emptyOutDir: true,
    assetsDir: "assets",
    // Everything is a file of its own: the page's policy allows no data: in scripts and styles.
    assetsInlineLimit: 0,
    target: "es2022",
    modulePreload: { polyfill: false },
    reportCompressedSize: true,
  },
  server: { host: "127.0.0.1", proxy: { [api]: server } },
  test: { include: ["test/**/*.test.{ts,tsx}"], environment: "happy-dom" },
});
