// Access to the elements of index.html.

/** Returns the element with an id. */
export function byId<Type extends Element = HTMLElement>(id: string): Type {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`index.html has no #${id}`);
  return element as unknown as Type;
}

/** Shows a message in an element, or hides the element. */
export function showError(id: string, message: string | null): void {
  const element = byId(id);
  element.textContent = message ?? "";
  element.hidden = message === null;
}

/** Reads a number field. Throws an error that names the field if its value is not allowed. */
export function readNumber(id: string): number {
  const input = byId<HTMLInputElement>(id);
  const isValid = input.checkValidity();
  input.classList.toggle("invalid", !isValid);
  if (!isValid) {
    const name = input.labels?.[0]?.textContent?.trim() ?? id;
    const { min, max } = input;
    const range = max === "" ? `at least ${min}` : `from ${min} to ${max}`;
    const kind = input.step === "1" ? "a whole number" : "a number";
    const given = input.validity.badInput || input.value === "" ? "nothing numeric was entered" : `${input.value} was entered`;
    throw new Error(`${name} must be ${kind} ${range}; ${given}`);
  }
  return input.valueAsNumber;
}

/** Returns the value of the checked radio button of this name. */
export function checked(form: HTMLFormElement, name: string): string {
  return String(new FormData(form).get(name));
}

/** Returns the message of an error, without a final period. */
export function messageOf(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).replace(/\.$/, "");
}
