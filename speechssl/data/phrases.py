"""Phrases that are combined into sentences for the synthetic corpus: who, does, what, where."""

from collections.abc import Mapping

Phrases = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]

PHRASES: Mapping[str, Phrases] = {
    "en": (
        (
            "The teacher",
            "My sister",
            "A young doctor",
            "The old farmer",
            "Our neighbour",
            "The tall boy",
            "A quiet girl",
        ),
        ("buys", "paints", "forgets", "carries", "finds", "cleans", "wants"),
        ("a red bicycle", "the warm bread", "three letters", "a wooden chair", "the green bottle", "some flowers"),
        ("at the market", "before breakfast", "near the river", "every summer", "behind the house", "on Thursday"),
    ),
    "de": (
        ("Der Lehrer", "Meine Schwester", "Eine junge Ärztin", "Der alte Bauer", "Unser Nachbar", "Das Kind"),
        ("kauft", "malt", "vergisst", "trägt", "findet", "putzt", "sucht"),
        ("ein rotes Fahrrad", "das warme Brot", "drei Briefe", "einen Stuhl", "die grüne Flasche", "schöne Blumen"),
        ("auf dem Markt", "vor dem Frühstück", "am Fluss", "jeden Sommer", "hinter dem Haus", "am Donnerstag"),
    ),
    "es": (
        ("El maestro", "Mi hermana", "Una médica joven", "El viejo campesino", "Nuestro vecino", "La niña"),
        ("compra", "pinta", "olvida", "lleva", "encuentra", "limpia", "busca"),
        ("una bicicleta roja", "el pan caliente", "tres cartas", "una silla", "la botella verde", "muchas flores"),
        ("en el mercado", "antes del desayuno", "cerca del río", "cada verano", "detrás de la casa", "el jueves"),
    ),
    "fr": (
        ("Le professeur", "Ma sœur", "Une jeune femme", "Le vieux paysan", "Notre voisin", "La petite fille"),
        ("achète", "dessine", "oublie", "porte", "trouve", "nettoie", "cherche"),
        ("un vélo rouge", "le pain chaud", "trois lettres", "une chaise", "la bouteille verte", "quelques fleurs"),
        ("au marché", "avant le repas", "près de la rivière", "chaque été", "derrière la maison", "jeudi matin"),
    ),
    "cs": (
        ("Učitel", "Moje sestra", "Mladá lékařka", "Starý sedlák", "Náš soused", "Malý chlapec", "Tichá dívka"),
        ("kupuje", "maluje", "hledá", "nese", "čistí", "vidí", "ukazuje"),
        ("červené kolo", "teplý chléb", "tři dopisy", "dřevěné křeslo", "zelené sklo", "krásné květiny"),
        ("na trhu", "před snídaní", "blízko řeky", "každé léto", "za domem", "ve čtvrtek"),
    ),
    "ru": (
        ("Учитель", "Моя сестра", "Молодой врач", "Старый сосед", "Наш друг", "Высокий мальчик", "Тихая девочка"),
        ("покупает", "рисует", "находит", "несёт", "моет", "видит", "ищет"),
        ("красное яблоко", "тёплый хлеб", "три письма", "деревянный стол", "зелёное стекло", "большие цветы"),
        ("на рынке", "перед завтраком", "около реки", "каждое лето", "за домом", "в четверг"),
    ),
}
