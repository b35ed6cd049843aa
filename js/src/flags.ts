/** The flags of WebGPU that the package uses. Under Node their namespaces are globals only if the caller has made them so. */
export const BufferUsage = { MAP_READ: 0x1, COPY_SRC: 0x4, COPY_DST: 0x8, STORAGE: 0x80 } as const;

/** `GPUShaderStage.COMPUTE`. */
export const COMPUTE_STAGE = 0x4;

/** `GPUMapMode.READ`. */
export const READ_MODE = 0x1;
