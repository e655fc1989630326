"""Support tickets: sort, then summarise, find the amount or answer; then team, urgency and a line to the customer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random

from .documents import Document, chat, completion, is_held_out
from .words import NAMES, THINGS

SYSTEM = "You sort support tickets."
LABELS = ("bug", "billing", "other")
SUMMARISE = "Summarise it as JSON."
WHICH_AMOUNT = "Which amount is it about?"
ANSWER = "Answer the customer in one sentence."
WHICH_TEAM = "Which team should handle it?"
HOW_URGENT = "How urgent is it, from 1 to 5?"
ONE_LINE = "Write one line to the customer."
TEAMS = {"app": "mobile", "website": "web", "payments": "payments", "login": "accounts", "search": "search"}


@dataclass(frozen=True, slots=True)
class Ticket:
    """A support ticket and every right answer about it."""

    text: str
    label: str
    follow_up: str  # the question that the label leads to; empty if the ticket names no amount
    follow_up_answer: str
    team: str
    urgency: int
    line: str
    key: str


# component, severity, summary, ways of saying it; {thing} is filled alike in the summary and in the text.
_BUGS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("app", "high", "App crashes on start", (
        "the app crashes on start", "the app crashes every time I start it", "your app closes as soon as I open it",
        "the app crashes when I open it", "the app does not start any more, it just crashes",
        "I cannot open the app, it crashes at once")),
    ("app", "high", "App freezes", (
        "the app freezes", "the app hangs and nothing reacts", "your app gets stuck and does not respond",
        "the app freezes after a few seconds")),
    ("app", "high", "App loses data", (
        "the app lost all my data", "all my notes are gone from the app", "the app deleted my saved files",
        "my data disappeared from the app")),
    ("app", "medium", "App crashes in {thing}", (
        "the app crashes when I open {thing}", "the app crashes in {thing}", "opening {thing} crashes the app",
        "when I tap on {thing} the app crashes")),
    ("app", "medium", "App crashes: {action}", (
        "the app crashes when I {action}", "every time I {action} the app crashes", "the app closes when I {action}",
        "when I {action} the app just closes")),
    ("app", "medium", "App error: {action}", (
        "I get an error in the app when I {action}", "the app shows an error when I {action}",
        "there is an error message in the app whenever I {action}")),
    ("website", "medium", "Website error: {action}", (
        "I get an error on your website when I {action}", "the website shows an error when I {action}",
        "your site gives me an error every time I {action}")),
    ("app", "medium", "App is slow", (
        "the app is very slow", "the app takes ages to load", "your app has become really slow",
        "everything in the app loads slowly")),
    ("app", "medium", "Notifications do not arrive", (
        "I do not get any notifications", "the notifications do not arrive", "push notifications stopped working",
        "the app no longer sends me notifications")),
    ("app", "low", "Text is cut off in {thing}", (
        "the text is cut off in {thing}", "in the app I cannot read the text in {thing} because it is cut off",
        "some words are cut off in {thing}")),
    ("app", "low", "Dark mode shows wrong colours", (
        "dark mode shows the wrong colours", "the colours are wrong in dark mode",
        "in dark mode the buttons have strange colours")),
    ("website", "high", "Website is down", (
        "the website is down", "your website does not load at all", "I cannot reach your website",
        "the site is not available", "your website shows error 500")),
    ("website", "medium", "The {thing} does not load", (
        "{thing} does not load", "{thing} stays blank", "I only see a blank screen on {thing}",
        "{thing} shows an error")),
    ("website", "medium", "Button on {thing} does not work", (
        "the button on {thing} does not work", "nothing happens when I click the button on {thing}",
        "clicking the button on {thing} does nothing")),
    ("website", "medium", "Upload fails", (
        "the upload fails", "I cannot upload a file", "uploading a picture does not work",
        "my file upload stops with an error")),
    ("website", "low", "Typo on {thing}", (
        "there is a typo on {thing}", "I found a spelling mistake on {thing}", "a word is misspelled on {thing}")),
    ("website", "low", "Image is missing on {thing}", (
        "an image is missing on {thing}", "a picture does not show on {thing}", "I see a broken image on {thing}")),
    ("payments", "high", "Checkout fails", (
        "the checkout fails with an error", "I get an error at checkout", "the checkout page crashes",
        "checkout does not work")),
    ("payments", "high", "Card payment is rejected with an error", (
        "the payment form rejects my card with an error", "I get an error when I enter my card",
        "my card does not work in the payment form", "the payment form shows an error for every card")),
    ("payments", "medium", "Discount code does not work", (
        "the discount code does not work", "my voucher code is not accepted", "the coupon gives an error")),
    ("login", "high", "Login fails", (
        "I cannot log in", "the login fails with an error", "logging in does not work any more",
        "I cannot sign in to my account", "the login page rejects my correct password")),
    ("login", "medium", "Password reset mail does not arrive", (
        "the password reset mail does not arrive", "I never get the mail to reset my password",
        "the reset link for my password never comes")),
    ("login", "medium", "Login code does not arrive", (
        "the login code does not arrive", "I do not receive the code for logging in",
        "the text message with the login code never comes")),
    ("login", "low", "User is logged out too often", (
        "I am logged out all the time", "I have to log in again every hour", "the site keeps logging me out")),
    ("search", "high", "Search returns no results", (
        "the search returns no results", "the search finds nothing at all", "search is broken and shows nothing",
        "every search ends with no results")),
    ("search", "medium", "Search shows wrong results", (
        "the search shows the wrong results", "the search results have nothing to do with my words",
        "I get wrong results when I search")),
    ("search", "low", "Search filter does not work", (
        "the filter in the search does not work", "I cannot sort the search results",
        "the search ignores my filter")),
)
_ACTIONS = (
    "upload a photo", "send a message", "open a file", "save my work", "share a link", "print a page", "add a friend",
    "open a link", "change my picture", "scan a code", "play a video", "record a video", "add an event", "pay",
    "click on send", "press save", "type my name", "rotate the screen", "export a report", "open a chat")
_BEFORE = (
    "I have used your service for years.", "I am a new customer.", "I bought a {thing} from you last week.",
    "I have a question.", "I have a problem.", "My name is {name}.", "I am writing for my company.",
    "We talked on the phone yesterday.", "I could not find this on your help page.", "I have tried everything.")
_APP_THINGS = ("the settings", "my profile", "the camera", "the calendar", "the map", "the chat", "the inbox",
    "the gallery")
_WEB_THINGS = ("the home page", "the contact page", "the help page", "the product page", "the order page",
               "the account page", "the news page", "the profile page")

# urgency, line to the customer, ways of saying it
_BILLING: tuple[tuple[int, str, tuple[str, ...]], ...] = (
    (4, "Sorry about the double charge, we will pay back {amount}.", (
        "I was charged {amount} twice", "you charged me twice, {amount} each time", "I see two charges of {amount}",
        "{amount} was taken from my card two times", "I have been billed twice for {amount}",
        "My card was charged twice for {amount}")),
    (4, "Sorry about that, we will check the charge of {amount}.", (
        "I was charged {amount} but I never ordered anything", "there is a charge of {amount} that I do not know",
        "what is this charge of {amount} on my card?", "my card shows {amount} from you and I did not buy anything",
        "I see an unknown payment of {amount}")),
    (4, "Sorry about that, we will stop the plan and pay back {amount}.", (
        "I cancelled my plan but I was charged {amount} again", "I cancelled last month and still paid {amount}",
        "you took {amount} although my subscription is cancelled")),
    (3, "We will look for your refund of {amount} today.", (
        "my refund of {amount} has not arrived", "where is my refund of {amount}?",
        "I am still waiting for my refund of {amount}", "I returned my order and want my {amount} back",
        "please refund {amount} for my last order", "I would like a refund of {amount}",
        "please pay back the {amount}")),
    (3, "Thank you for telling us, we will correct the invoice to {amount}.", (
        "my invoice is wrong, it should be {amount}", "the invoice should say {amount}, please correct it",
        "the total on my invoice is wrong, I expected {amount}")),
    (2, "We will send you the invoice for {amount} by mail.", (
        "I need an invoice for {amount}", "please send me a receipt for {amount}",
        "can I get a receipt for my payment of {amount}?", "I paid {amount} and need the invoice for my company")),
    (2, "The price of {amount} is billed once a month.", (
        "is the price of {amount} per month or per year?", "do I pay {amount} every month?",
        "how often will I be billed {amount}?", "your plan costs {amount}, is that per month?")),
)

# The same without an amount: there is nothing to ask about it.
_BILLING_NO_AMOUNT: tuple[tuple[int, str, tuple[str, ...]], ...] = (
    (4, "Sorry about the double charge, we will pay it back.", (
        "I was charged twice", "you charged me twice", "my card was charged two times", "I paid twice for one order",
        "I have been billed twice")),
    (3, "We will look for your refund today.", (
        "I want my money back", "my refund has not arrived", "where is my refund?", "I would like a refund",
        "please refund my last order")),
    (2, "We will send you the invoice by mail.", (
        "I need an invoice", "please send me a receipt", "where can I find my invoice?", "can I get a receipt?")),
    (2, "Thank you for asking about our prices.", (
        "how much does it cost?", "what is the price of the big plan?", "can I pay with a card?",
        "which ways to pay do you offer?", "is there a discount for students?")),
    (2, "We will change your plan today.", (
        "please cancel my subscription", "I want to cancel my plan", "how do I upgrade my plan?",
        "I want to change my payment method")),
)

# answer in one sentence, line to the customer, ways of saying it
_OTHER: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("You can change your password in the settings.", "Thank you for asking about your password.", (
        "how do I change my password?", "where can I change my password?", "I want to change my password, how?")),
    ("You can change your address in your profile.", "Thank you for asking about your address.", (
        "how do I change my address?", "I moved, where can I enter my new address?", "can I change my email address?")),
    ("We are open from nine to five on weekdays.", "Thank you for asking about our opening hours.", (
        "when are you open?", "what are your opening hours?", "are you open on weekends?")),
    ("You can delete your account in the settings.", "Thank you for asking about your account.", (
        "how do I delete my account?", "I want to close my account, what do I do?", "can you delete my account?")),
    ("Thank you very much, we are happy to hear it.", "Thank you for your kind words.", (
        "I just want to say thank you", "your service is great, thank you", "I love your product, great work",
        "thanks for the quick help last week", "you have a wonderful team")),
    ("Thank you for the idea, we will discuss it.", "Thank you for your idea.", (
        "could you add {thing}?", "it would be nice to have {thing}", "please add {thing}",
        "do you plan to add {thing}?",
        "I have an idea: add {thing}")),
    ("We ship to all countries in Europe.", "Thank you for asking about shipping.", (
        "do you ship to {place}?", "can you deliver to {place}?", "is shipping to {place} possible?")),
    ("You can find the user guide on our help page.", "Thank you for asking about our guide.", (
        "where can I find the user guide?", "is there a manual?", "where is the documentation?",
        "do you have a guide for beginners?")),
    ("Please send your application by mail.", "Thank you for your interest in our team.", (
        "do you have open jobs?", "I would like to work for you", "how can I apply for a job?")),
    ("Yes, you can use it on as many devices as you like.", "Thank you for asking about devices.", (
        "can I use it on two devices?", "does it work on tablets too?", "on how many devices can I use it?")),
    ("You can export your data in the settings.", "Thank you for asking about your data.", (
        "how do I export my data?", "can I download my data?", "is there a way to save my data as a file?")),
    ("You can change the language in the settings.", "Thank you for asking about languages.", (
        "how do I change the language?", "is there a {language} version?", "do you support {language}?")),
    ("Please call us, and we will find a time for you.", "Thank you for asking for a meeting.", (
        "can I book a call with your team?", "I would like to talk to someone", "can somebody call me back?")),
)
_WISHES = ("a dark mode", "a calendar", "a bigger font", "an export button", "a weekly report", "a widget",
           "a family plan", "more colours", "a chat", "voice messages")
_SHIP_TO = ("Spain", "Norway", "Poland", "Italy", "Greece", "Finland", "Ireland", "Austria")
_LANGUAGES = ("French", "German", "Spanish", "Italian", "Polish", "Dutch", "Swedish", "Greek")

_OPEN = ("", "", "", "", "Hi, ", "Hello, ", "Hi there, ", "Hello team, ", "Dear team, ", "Good morning, ", "Help! ")
_BUG_WHERE = ("", "", "", " on my phone", " on my laptop", " on my tablet", " in Firefox", " in Chrome",
              " on my Pixel 8", " on Windows 11")
_BUG_SINCE = ("", "", "", " since yesterday", " since the last update", " since Monday", " since this morning",
              " since version 2.4")
_SEVERITY_CUES = {
    "high": ("Nobody in our team can work.", "This blocks our whole company.", "I need this fixed today."),
    "medium": ("It happens now and then.", "It is annoying but I can work."),
    "low": ("It is only a small thing.", "No hurry.", "This is not important."),
}
_BILL_MORE = ("", "", "", " on {day}", " for order {order}", " this month", " last week")
_DAYS = ("Monday", "Tuesday", "Friday", "March 3", "May 12", "June 21")
_CLOSE = ("", "", "", "", " Please help.", " Thanks!", " Thank you.", " Please look into it.", " What can I do?",
          " Regards, {name}")
_URGENT = " This is urgent."
_URGENCY_BY_SEVERITY = {"low": 2, "medium": 3, "high": 5}


def make_ticket(rng: Random, label: str, *, always_amount: bool = False) -> Ticket:
    """A random ticket with this label. Billing tickets name an amount: nearly always, or always."""
    opening = rng.choice(_OPEN)
    closing = rng.choice(_CLOSE).format(name=rng.choice(NAMES))
    is_urgent = rng.random() < 0.08
    if label == "bug":
        index = rng.randrange(len(_BUGS))
        component, severity, summary, ways = _BUGS[index]
        way = rng.randrange(len(ways))
        thing = rng.choice(_APP_THINGS if component == "app" else _WEB_THINGS)
        action = rng.choice(_ACTIONS)
        where = rng.choice(_BUG_WHERE) + rng.choice(_BUG_SINCE)
        body = ways[way].format(thing=thing, action=action) + where
        if rng.random() < 0.25:
            severity = rng.choice(list(_SEVERITY_CUES))
            closing = " " + rng.choice(_SEVERITY_CUES[severity]) + closing
        if is_urgent:
            severity = "high"
        summary = summary.format(thing=thing.removeprefix("the ").removeprefix("my "), action=action)
        report = {"summary": summary, "component": component, "severity": severity}
        follow_up, answer = SUMMARISE, json.dumps(report)
        team, urgency = TEAMS[component], _URGENCY_BY_SEVERITY[severity]
        line = f"Sorry about that, our {team} team is looking into it."
        key = f"bug {index} {ways[way].format(thing=thing, action=action)} {where}"
    elif label == "billing":
        kinds = _BILLING if always_amount or rng.random() < 0.8 else _BILLING_NO_AMOUNT
        index = rng.randrange(len(kinds))
        urgency, line, ways = kinds[index]
        way = rng.randrange(len(ways))
        dollars = rng.choice([rng.randint(1, 9), rng.randint(10, 99), rng.randint(100, 999)])
        amount = exact = f"${dollars}.{rng.randint(0, 99):02d}"
        if rng.random() < 0.08:
            exact = f"${dollars}.00"
            amount = rng.choice([f"${dollars}", exact])
        more = rng.choice(_BILL_MORE).format(day=rng.choice(_DAYS), order=rng.randint(1000, 9999))
        body = ways[way].format(amount=amount)
        body = body if body.endswith("?") else body + more
        follow_up, answer = WHICH_AMOUNT, exact
        team, line = "billing", line.format(amount=amount)
        key = f"billing {index} {way} {amount}"
        if kinds is _BILLING_NO_AMOUNT:
            follow_up = answer = ""
            key = f"billing {body} {opening} {closing}"
    else:
        index = rng.randrange(len(_OTHER))
        answer, line, ways = _OTHER[index]
        way = rng.randrange(len(ways))
        slots = {"thing": rng.choice(_WISHES), "place": rng.choice(_SHIP_TO), "language": rng.choice(_LANGUAGES)}
        body = ways[way].format(**slots)
        follow_up, team, urgency = ANSWER, "support", 1
        key = f"other {index} {way} {body} {opening}{closing}"
    urgency = 5 if is_urgent else urgency
    if not opening.endswith(", "):
        body = body[0].upper() + body[1:]
    dot = "" if body.endswith("?") else rng.choice([".", ".", ".", "!"])
    if not dot and not closing and body[-1] != "?":
        dot = "."
    if not is_urgent and not closing and dot == "." and rng.random() < 0.4:
        dot = ""
    if rng.random() < 0.12:
        before = rng.choice(_BEFORE).format(thing=rng.choice(THINGS), name=rng.choice(NAMES))
        if opening.endswith(", ") and not before.startswith("I "):
            before = before[0].lower() + before[1:]
        opening, body = f"{opening}{before} ", body[0].upper() + body[1:]
    text = opening + body + dot + (_URGENT if is_urgent else "") + closing
    return Ticket(text, label, follow_up, answer, team, urgency, line, key)


def any_ticket(rng: Random) -> Ticket:
    return make_ticket(rng, rng.choice(LABELS))


def sample_tickets(count: int, seed: int) -> list[Ticket]:
    """`count` different held-out tickets (never trained on), labels in turn, then shuffled."""
    rng = Random(f"tickets {seed}")
    tickets: dict[str, Ticket] = {}
    while len(tickets) < count:
        ticket = make_ticket(rng, LABELS[len(tickets) % len(LABELS)], always_amount=True)
        if is_held_out(ticket.key):
            tickets.setdefault(ticket.text, ticket)
    chosen = list(tickets.values())
    rng.shuffle(chosen)
    return chosen


def sorting(rng: Random) -> Document:
    """The demo: label, then any of the follow-ups."""
    ticket = any_ticket(rng)
    asks = [
        (WHICH_TEAM, ticket.team),
        (HOW_URGENT, str(ticket.urgency)),
        (ONE_LINE, ticket.line),
    ]
    rng.shuffle(asks)
    turns = [ticket.text, ticket.label]
    if ticket.follow_up and rng.random() < 0.65:
        turns += [ticket.follow_up, ticket.follow_up_answer]
    for question, answer in asks[: rng.randint(0, 3)]:
        turns += [question, answer]
    return chat(ticket.key, *turns, system=SYSTEM)


def other_ways(rng: Random) -> Document:
    """The same tickets asked about in other words: plain text, few-shot, no system prompt."""
    ticket = any_ticket(rng)
    kind = rng.randrange(5)
    if kind == 0:
        question = rng.choice([
            f"Classify this ticket as bug, billing or other: {ticket.text}",
            f"Is this ticket a bug, billing or other?\n{ticket.text}",
            f"Sort this support ticket (bug, billing, other):\n{ticket.text}",
        ])
        return chat(ticket.key, question, ticket.label)
    if kind == 1:
        shots = [example for example in (any_ticket(rng) for _ in range(9)) if not is_held_out(example.key)]
        texts: list[str] = []
        for i, example in enumerate([*shots[: rng.randint(0, 3)], ticket]):
            texts += ["\n" * (i > 0) + f"Ticket: {example.text}\nLabel:", f" {example.label}"]
        return completion(ticket.key, *texts)
    if kind == 2:
        return chat(ticket.key, ticket.text, ticket.team, system="Name the team that should handle the ticket.")
    if kind == 3:
        return chat(ticket.key, ticket.text, str(ticket.urgency), system="Say how urgent the ticket is, from 1 to 5.")
    question, answer = rng.choice([
        ("Which team should handle it?", ticket.team),
        ("How urgent is it, from 1 to 5?", str(ticket.urgency)),
        ("Write one line to the customer.", ticket.line),
        *([(ticket.follow_up, ticket.follow_up_answer)] if ticket.follow_up else []),
    ])
    return chat(ticket.key, f"{ticket.text}\n{question}", answer)
