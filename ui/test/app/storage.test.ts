import { afterEach, expect, test, vi } from "vitest";

afterEach(() => {
  vi.unstubAllGlobals();
  vi.resetModules();
});

test("a browser that keeps nothing for this page shows it all the same, with the key until it is left", async () => {
  const refusing = {
    get() {
      throw new DOMException("Access is denied for this document.", "SecurityError");
    },
    configurable: true,
  };
  const had = [Object.getOwnPropertyDescriptor(globalThis, "localStorage")!, Object.getOwnPropertyDescriptor(globalThis, "sessionStorage")!];
  Object.defineProperty(globalThis, "localStorage", refusing);
  Object.defineProperty(globalThis, "sessionStorage", refusing);
  try {
    vi.resetModules();
    const { chooseTheme, theme } = await import("../../src/app/theme");
    const { key, useKey } = await import("../../src/api/client");
    expect([theme.value, key()]).toEqual(["auto", null]);
    chooseTheme("dark");
    useKey("a-key");
    expect([theme.value, key()]).toEqual(["dark", "a-key"]);
    useKey(null);
    expect(key()).toBe(null);
  } finally {
    Object.defineProperty(globalThis, "localStorage", had[0]!);
    Object.defineProperty(globalThis, "sessionStorage", had[1]!);
  }
});
