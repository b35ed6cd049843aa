// usage: node minify-shaders.js FOLDER
//
// Writes the files of shaders/ to a folder, minified for the planner, which a page downloads: without comments and needless
// spaces, and with short names. A browser's message about a shader shows these names and, as always, the label of the kernel.
//
// Minifiers of whole modules do not fit: a kernel is put together from several files and from text that src/kernels generates.
// So the names that files share, those of the module scope and of members, change alike in all files, and the names in the
// text of src/kernels stay. src/kernels/tests/minified.rs tests that the kernels are the same programs.
import { existsSync, mkdirSync, readdirSync, readFileSync, realpathSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const letters = [..."abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"];
const wordsOfWgsl = ["as", "do", "fn", "if", "of"];
const pairs = letters.flatMap((one) => letters.map((other) => one + other)).filter((pair) => !wordsOfWgsl.includes(pair));

/** Returns the words in the string literals of Rust code, except the paths of files. */
export function wordsInLiterals(code) {
  const literals = [...code.matchAll(/\/\/.*|"((?:\\[^]|[^"\\])*)"/g)].map(([, literal]) => literal ?? "");
  return literals.filter((literal) => !/^\w+\/\w+$/.test(literal)).flatMap((literal) => literal.match(/[A-Za-z_]\w*/g) ?? []);
}

/** Returns WGSL texts that are used together, minified. Names of the module scope and of members stay if they are in `kept`. */
export function minify(texts, kept) {
  const files = texts.map((text) => ({ header: text.match(/^\/\/ (requires|binds|constants): .*\n/gm) ?? [], code: parse(text) }));
  const declarations = files.flatMap(({ code }) => code);
  const isSwizzle = (name) => /^([xyzw]+|[rgba]+)$/.test(name);
  const shorten = (scope, declared, short) => {
    const names = new Set(declared.filter((name) => !kept.has(name)));
    const uses = declarations.flatMap(({ tokens, scopes }) => tokens.filter((token, at) => scopes[at] === scope && names.has(token)));
    return renaming(byFrequency(uses), short.filter((name) => !kept.has(name)));
  };
  const module = shorten("module", declarations.map(({ name }) => name), pairs);
  const members = declarations.flatMap(({ members }) => members).filter((name) => !isSwizzle(name));
  const member = shorten("member", members, [...letters, ...pairs]);
  const minified = ({ tokens, scopes, locals }) => {
    const names = { module, member, local: renaming([...locals], letters) };
    return tokens.map((token, at) => names[scopes[at]].get(token) ?? token).reduce(joined);
  };
  return files.map(({ header, code }) => `${header.join("")}${code.map(minified).join("")}\n`);
}

/** Splits a text into its declarations of the module scope. */
function parse(text) {
  const declarations = [[]];
  let depth = 0;
  for (const token of text.replace(/\/\/.*/g, "").match(/\w+|([-+&|])\1|[^\s\w]/g)) {
    declarations.at(-1).push(token);
    depth += { "{": 1, "}": -1 }[token] ?? 0;
    if (depth === 0 && /[;}]/.test(token)) declarations.push([]);
  }
  return declarations.filter((tokens) => tokens.length > 0).map(declaration);
}

/** Returns what a declaration declares and, for each token, the scope of the name that it may be. A local hides other names in all of its function. */
function declaration(tokens) {
  const start = tokens.findIndex((token) => /^(fn|struct|const|var)$/.test(token));
  const keyword = tokens[start];
  // `var<workgroup> name`
  const name = tokens[start + (keyword === "var" ? 4 : 1)];
  const isTyped = (_, at) => tokens[at + 1] === ":";
  const members = keyword === "struct" ? tokens.filter(isTyped) : [];
  const isParameter = (_, at) => tokens[at + 1] === ":" && at < tokens.indexOf("{");
  const isVariable = (_, at) => /^(let|var|const)$/.test(tokens[at - 1]);
  const locals = new Set(keyword === "fn" ? tokens.filter((_, at) => isParameter(_, at) || isVariable(_, at)) : []);
  const scopes = tokens.map((token, at) => {
    if (tokens[at - 1] === "." || (keyword === "struct" && tokens[at + 1] === ":")) return "member";
    return locals.has(token) ? "local" : "module";
  });
  return { tokens, name, members, locals, scopes };
}

/** Returns each name once, the most frequent first. */
function byFrequency(names) {
  const counts = new Map();
  for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1);
  return [...counts.keys()].sort((one, other) => counts.get(other) - counts.get(one));
}

/** Gives every old name a short one, in order. */
function renaming(old, short) {
  if (old.length > short.length) throw new Error(`${old.length} names, but only ${short.length} short ones`);
  return new Map(old.map((name, index) => [name, short[index]]));
}

/** Appends a token, after a space if the two would be read as one. */
const joined = (text, token) => text + (/\w\w|--|\+\+|&&|\|\|/.test(text.at(-1) + token[0]) ? " " : "") + token;

/** Returns the files in a folder, as pairs of path and text. */
const filesIn = (folder) => {
  const paths = readdirSync(folder, { recursive: true }).filter((path) => /\.\w+$/.test(path));
  return paths.sort().map((path) => [path, readFileSync(join(folder, path), "utf8")]);
};

const [, script = "", folder] = process.argv;
// Node resolves symbolic links in the URL of a module, but not in its arguments.
if (existsSync(script) && realpathSync(script) === fileURLToPath(import.meta.url)) {
  const root = fileURLToPath(new URL("../..", import.meta.url));
  const rust = filesIn(join(root, "src/kernels")).filter(([path]) => !path.startsWith("tests"));
  const kept = new Set(["main", ...rust.flatMap(([, code]) => wordsInLiterals(code))]);
  const files = filesIn(join(root, "shaders"));
  const texts = minify(files.map(([, text]) => text), kept);
  for (const [index, [path]] of files.entries()) {
    const file = join(folder, path);
    // An unchanged file stays as old as it is: Cargo compiles again what depends on a newer file.
    if (existsSync(file) && readFileSync(file, "utf8") === texts[index]) continue;
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, texts[index]);
  }
}
