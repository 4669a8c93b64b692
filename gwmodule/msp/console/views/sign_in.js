import { signIn } from "../api.js";
import { field, h, replace } from "../dom.js";

export function signInView(main, signedIn) {
  const problem = h("p", { class: "error", role: "alert" });
  const submit = h("button", { class: "primary" }, "Sign in");
  main.className = "narrow";
  replace(main, h("form", {
    class: "panel",
    onsubmit: async (event) => {
      event.preventDefault();
      problem.textContent = "";
      submit.disabled = true;
      try {
        const values = new FormData(event.target);
        await signIn(values.get("username"), values.get("password"));
        signedIn();
      } catch (error) {
        problem.textContent = error.status === 401 ? "Wrong user name or password." : error.message;
      } finally {
        submit.disabled = false;
      }
    },
  },
  h("h1", {}, "Sign in"),
  field("User", "username", { required: true, autocomplete: "username", maxlength: 255 }),
  field("Password", "password", { required: true, type: "password", autocomplete: "current-password", maxlength: 255 }),
  problem, submit));
  main.querySelector("input").focus();
}
