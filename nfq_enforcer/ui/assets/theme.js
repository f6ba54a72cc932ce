// Theme: light or dark, as the system has it or as the user chooses; the choice is kept in this browser.

const CHOICES = ["system", "light", "dark"];
const KEY = "nfq-enforcer-theme";
const dark = matchMedia("(prefers-color-scheme: dark)");

function stored() {
  try {
    const choice = localStorage.getItem(KEY);
    return CHOICES.includes(choice) ? choice : "system";
  } catch {  // the browser keeps nothing for this page
    return "system";
  }
}

export function setUp(button, onChange) {
  let choice = stored();
  const apply = () => {
    document.documentElement.dataset.theme = choice === "system" ? (dark.matches ? "dark" : "light") : choice;
    button.textContent = `Theme: ${choice}`;
    onChange();
  };
  button.addEventListener("click", () => {
    choice = CHOICES[(CHOICES.indexOf(choice) + 1) % CHOICES.length];
    try {
      localStorage.setItem(KEY, choice);
    } catch {
      // the choice holds until the page is closed
    }
    apply();
  });
  dark.addEventListener("change", apply);
  apply();
}
