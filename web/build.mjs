/** Builds dist/ from src/: `npm run build`, or `node build.mjs FOLDER` to compare.
 *
 * dist/ is committed, so that nobody needs these tools to use the package or to run its tests.
 */

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
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

// What dist/ was built from, so that a test knows without these tools whether it is of the sources beside it.
const sourceFiles = readdirSync(here("src")).sort().map((file) => `src/${file}`);
const sources = createHash("sha256");
for (const name of ["build.mjs", "package-lock.json", "tsconfig.json", ...sourceFiles]) {
  sources.update(`${name}\0`).update(readFileSync(here(name)));
}

await build({
  entryPoints: [here("src/index.ts")],
  outfile: `${out}/distilrec.js`,
  bundle: true,
  format: "esm",
  target: "es2022",
  minify: true,
  charset: "utf8",
  legalComments: "none",
  banner: { js: "// distilrec, Apache-2.0; built by web/build.mjs from sources with SHA-256 " + sources.digest("hex") },
  plugins: [made],
});
const tsc = createRequire(import.meta.url).resolve("typescript/bin/tsc");
execFileSync(process.execPath, [tsc, "--project", here("tsconfig.json"), "--outDir", out], { stdio: "inherit" });
