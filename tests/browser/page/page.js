// Runs the tests of the module one after the other, and tells run.mjs the outcome of each.
import init, { names, run } from "./gradclip_browser_tests.js";

const report = (line) => fetch("/report", { method: "POST", body: JSON.stringify(line) });
const stop = (error) => report({ stopped: String(error) });
// A panic of the module ends its tasks, and no promise of a test settles after that.
addEventListener("error", (event) => stop(event.message));
addEventListener("unhandledrejection", (event) => stop(event.reason));
for (const kind of ["error", "warn"]) {
    const print = console[kind];
    console[kind] = (...words) => {
        report({ console: words.join(" ") });
        print(...words);
    };
}

try {
    await init({ module_or_path: new URL("gradclip_browser_tests_bg.wasm", import.meta.url) });
    const wanted = new URLSearchParams(location.search).get("filter") ?? "";
    for (const name of names().filter((name) => name.includes(wanted))) {
        const start = performance.now();
        const error = await run(name).then(() => null, String);
        await report({ name, error, seconds: (performance.now() - start) / 1000 });
    }
    await report({ done: true });
} catch (error) {
    await stop(error);
}
