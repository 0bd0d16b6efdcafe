// Bundles app.js with its dependency and makes the component. Run by build.sh in a folder with node_modules.
import { cp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { componentize } from "@bytecodealliance/componentize-js";
import { build } from "esbuild";

// The WASI interfaces come with jco, in version 0.2.12; the JavaScript engine in componentize-js speaks 0.2.10. Both
// are 0.2: the same functions.
const WASI = "node_modules/@bytecodealliance/jco/lib/wit/builtin/0.2.12";
const WORLD = `package novum:qrcode;

world function {
  export wasi:http/incoming-handler@0.2.10;
}
`;

await rm("wit", { recursive: true, force: true });
await cp(WASI, "wit/deps", { recursive: true });
for (const name of await readdir("wit/deps")) {
  const file = `wit/deps/${name}/package.wit`;
  await writeFile(file, (await readFile(file, "utf8")).replaceAll("0.2.12", "0.2.10"));
}
await writeFile("wit/world.wit", WORLD);

const bundle = await build({
  entryPoints: ["app.js"],
  bundle: true,
  format: "esm",
  platform: "neutral",
  mainFields: ["module", "main"],
  write: false,
});
const { component } = await componentize(bundle.outputFiles[0].text, { witPath: "wit", worldName: "function" });
await writeFile("qrcode.wasm", component);
