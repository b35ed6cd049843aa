// Starts the page.

import { ClipPanel } from "./clip-panel.js";
import { loadCpuPath } from "./cpu.js";
import { openGpu } from "./device.js";
import { byId, messageOf, showError } from "./dom.js";
import { TrainPanel } from "./train-panel.js";

async function start(): Promise<void> {
  const status = byId("device");
  const [gpu] = await Promise.all([openGpu(), loadCpuPath()]);
  if (typeof gpu === "string") {
    status.textContent = `No GPU: ${gpu} Everything here runs on the CPU path.`;
    status.classList.add("cpu");
  } else {
    status.textContent = `WebGPU: ${gpu.name}${gpu.software ? ", a software GPU" : ""}.`;
    status.classList.add("gpu");
    void gpu.device.lost.then(({ message }) => {
      const reason = messageOf(message || "no reason was given");
      status.textContent = `The GPU was lost: ${reason}. Everything here now runs on the CPU path. Reload the page to try the GPU again.`;
      status.className = "device cpu";
    });
  }
  const device = typeof gpu === "string" ? null : gpu;
  new TrainPanel(device);
  await new ClipPanel(device).run();
}

start().catch((error: unknown) => {
  byId("device").textContent = "The page failed to start.";
  showError("clip-error", `${messageOf(error)}.`);
  byId("clip-result").setAttribute("aria-busy", "false");
});
