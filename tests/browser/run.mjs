// usage: node tests/browser/run.mjs SITE [FILTER]
//
// Serves the folder SITE to a headless Chromium, and prints the outcome of each test whose name contains FILTER. The exit status is 0
// if every test has passed. CHROMIUM is the browser.
import { spawn, spawnSync } from "node:child_process";
import { createReadStream, existsSync, mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { extname, join, resolve, sep } from "node:path";

// A software GPU compiles a kernel in seconds, on a loaded machine in a minute.
const MOST_SECONDS_FOR_A_TEST = 900;

const [folder, filter = ""] = process.argv.slice(2);
if (!folder) {
    console.error("usage: node tests/browser/run.mjs SITE [FILTER]");
    process.exit(2);
}
const site = resolve(folder);
const types = { ".html": "text/html", ".js": "text/javascript", ".wasm": "application/wasm" };

const installed = (name) => spawnSync(name, ["--version"], { stdio: "ignore" }).status === 0;
const candidates = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
const chromium = process.env.CHROMIUM ?? candidates.find(installed);
if (!chromium) {
    console.error(`no browser found: install one of ${candidates.join(", ")}, or set CHROMIUM`);
    process.exit(2);
}

const profile = mkdtempSync(join(tmpdir(), "gradclip-browser-"));
let browser;
let passed = 0;
let failed = 0;
let timeout;

function finish(message, status) {
    clearTimeout(timeout);
    console.log(`\n${message}; ${passed} passed, ${failed} failed`);
    // The browser still writes to its profile until it has ended.
    browser.removeAllListeners("exit");
    browser.once("exit", () => {
        rmSync(profile, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 });
        process.exit(status);
    });
    browser.kill();
    setTimeout(() => browser.kill("SIGKILL"), 5000).unref();
}

function wait() {
    clearTimeout(timeout);
    const seconds = MOST_SECONDS_FOR_A_TEST;
    timeout = setTimeout(() => finish(`no test has ended for ${seconds} seconds`, 1), seconds * 1000);
}

function report({ name, error, seconds, console: line, stopped, done }) {
    if (line !== undefined) {
        console.log(`        console: ${line}`);
    } else if (stopped !== undefined) {
        finish(`the page stopped: ${stopped}`, 1);
    } else if (done) {
        finish("all tests have run", failed === 0 && passed > 0 ? 0 : 1);
    } else {
        wait();
        if (error === null) passed += 1;
        else failed += 1;
        console.log(`${error === null ? "ok    " : "FAILED"}  ${name} (${seconds.toFixed(1)} s)`);
        if (error !== null) console.log(`        ${error}`);
    }
}

const server = createServer((request, response) => {
    const { pathname } = new URL(request.url, "http://localhost");
    if (request.method === "POST") {
        let body = "";
        request.on("data", (data) => (body += data));
        request.on("end", () => {
            response.end();
            report(JSON.parse(body));
        });
        return;
    }
    const file = join(site, pathname === "/" ? "index.html" : decodeURIComponent(pathname));
    if (!file.startsWith(site + sep) || !existsSync(file)) {
        response.writeHead(404).end();
        return;
    }
    response.writeHead(200, { "content-type": types[extname(file)] ?? "application/octet-stream" });
    createReadStream(file).pipe(response);
});

server.listen(0, "127.0.0.1", () => {
    const page = `http://127.0.0.1:${server.address().port}/?filter=${encodeURIComponent(filter)}`;
    const flags = [
        "--headless=new",
        // A container has no sandbox, and the page is this folder.
        "--no-sandbox",
        // Without a GPU, Chromium offers WebGPU through SwiftShader only with this flag.
        "--enable-unsafe-webgpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        `--user-data-dir=${profile}`,
        page,
    ];
    browser = spawn(chromium, flags, { stdio: "ignore" });
    browser.once("error", (error) => {
        console.error(`${chromium} cannot be started: ${error.message}`);
        process.exit(2);
    });
    browser.once("exit", (status) => {
        console.error(`the browser ended with status ${status}`);
        process.exit(1);
    });
    wait();
});
