import { signIn } from "../api.js";
import { busy, field, h, replace } from "../dom.js";
import { mount } from "../router.js";

// `said`: why one has to.
export function signInView(main, signedIn, said = "") {
  const problem = h("p", { class: "error", role: "alert" });
  const submit = h("button", { class: "primary" }, "Sign in");
  main.className = "narrow";
  mount(main, h("form", {
    class: "panel",
    onsubmit: async (event) => {
      event.preventDefault();
      problem.textContent = "";
      await busy(submit, async () => {
        const values = new FormData(event.target);
        await signIn(values.get("username"), values.get("password"));
        signedIn();
      }, (error) => {
        replace(problem, error.status === 401 ? "Wrong user name or password." : error.message);
        event.target.elements.password.select();
      });
    },
  },
  h("h1", {}, "Sign in"), said && h("p", { class: "warning", role: "alert" }, said),
  field("User", "username", { required: true, autocomplete: "username", maxlength: 255 }),
  field("Password", "password", { required: true, type: "password", autocomplete: "current-password", maxlength: 255 }),
  problem, submit));
  main.querySelector("input").focus();
}
