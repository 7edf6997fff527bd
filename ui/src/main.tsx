import { render } from "preact";

import "./app/style.css";
import { App } from "./app/App";
import { startRouter } from "./app/router";
import { applyTheme } from "./app/theme";

applyTheme();
startRouter();
const place = document.getElementById("app");
if (place !== null) render(<App />, place);
