// `node tests/wasi.mjs PROGRAM [ARGUMENTS]`: runs a WebAssembly program for WASI, which sees the current directory.
import { readFile } from "node:fs/promises";
import { argv } from "node:process";
import { WASI } from "node:wasi";

const [program, ...rest] = argv.slice(2);
const wasi = new WASI({ version: "preview1", args: [program, ...rest], preopens: { ".": "." }, returnOnExit: true });
const module = await WebAssembly.compile(await readFile(program));
// Threads, which this system has not: functions that fail.
const env = new Proxy({}, { get: () => () => 52 });
const instance = await WebAssembly.instantiate(module, { ...wasi.getImportObject(), env });
process.exitCode = wasi.start(instance);
