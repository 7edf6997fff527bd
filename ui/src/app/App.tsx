export function App() {
  return <h1>Bloodbank</h1>;
}
