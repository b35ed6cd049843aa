// Constants of WebGPU that TypeScript's library does not declare.

declare const GPUBufferUsage: Readonly<
  Record<"MAP_READ" | "MAP_WRITE" | "COPY_SRC" | "COPY_DST" | "UNIFORM" | "STORAGE" | "QUERY_RESOLVE", number>
>;
declare const GPUMapMode: Readonly<Record<"READ" | "WRITE", number>>;
