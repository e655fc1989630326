"""JSON by a regex: the constraint, not the model, guarantees the form.

Teaches: `gen(regex=)`, reading a generated value back into Python.
"""

import json

import dslc

CITY = r'\{"name": "[A-Z][a-z]{2,15}", "country": "[A-Z][a-z]{2,15}", "population": [1-9][0-9]{3,7}\}'


@dslc.function
def city_by_regex(s, city):
    s += dslc.user(f"Describe the city of {city} as JSON.")
    s += dslc.assistant(dslc.gen("json", regex=CITY, max_tokens=96))


if __name__ == "__main__":
    print(json.loads(city_by_regex.run(city="Paris", temperature=0)["json"]))
