"use strict";

const LOGIN_PATH = "/api/v1/auth/login";

const dark = matchMedia("(prefers-color-scheme: dark)");
const applyScheme = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", applyScheme);
applyScheme();

/** A login tried on this page also authorizes the page; the token stays in memory only. */
function authorizeAfterLogin(response) {
  if (response.ok && new URL(response.url, location.href).pathname === LOGIN_PATH) {
    ui.preauthorizeApiKey("token", response.obj.data.token);
  }
  return response;
}

const ui = SwaggerUIBundle({
  url: "/docs/openapi.json",
  dom_id: "#api",
  deepLinking: true,
  displayRequestDuration: true,
  filter: true,
  defaultModelsExpandDepth: 0,
  tryItOutEnabled: true,
  validatorUrl: null, // would ask validator.swagger.io
  responseInterceptor: authorizeAfterLogin,
});
