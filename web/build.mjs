/** Builds dist/ from src/: `npm run build`, or `node build.mjs FOLDER` to compare.
 *
 * dist/ is committed, so that nobody needs these tools to use the package or to run its tests.
 */

import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";
import openWabt from "wabt";

const here = (name) => fileURLToPath(new URL(name, import.meta.url));
const out = process.argv[2] ?? here("dist");

const wabt = await openWabt();
const module = wabt.parseWat("scan.wat", readFileSync(here("src/scan.wat"), "utf8"), { simd: true });
const wasm = Buffer.from(module.toBinary({}).buffer).toString("base64");
const made = {
  name: "scan",
  setup(builder) {
    builder.onLoad({ filter: /scan\.ts$/ }, () => ({ contents: `export const SCAN = "${wasm}";` }));
  },
};

await build({
  entryPoints: [here("src/index.ts")],
  outfile: `${out}/distilrec.js`,
  bundle: true,
  format: "esm",
  target: "es2022",
  minify: true,
  charset: "utf8",
  legalComments: "none",
  banner: { js: "// distilrec, Apache-2.0; built from web/src by web/build.mjs" },
  plugins: [made],
});
const tsc = createRequire(import.meta.url).resolve("typescript/bin/tsc");
execFileSync(process.execPath, [tsc, "--project", here("tsconfig.json"), "--outDir", out], { stdio: "inherit" });
